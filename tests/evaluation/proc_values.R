# Reference values of tests/evaluation/proc_values.json, by the R package pROC.
#
#     Rscript tests/evaluation/proc_values.R
#
# from the root of the checkout, with pROC 1.18. Two data sets: whole numbers that the test computes likewise, with many
# ties, and the published predictions that are bundled with the package.

suppressPackageStartupMessages(library(pROC))

number <- function(x) ifelse(is.na(x), "null", ifelse(is.infinite(x), "1e999", sprintf("%.17g", x)))
vector <- function(x) paste0("[", paste(number(x), collapse = ", "), "]")
object <- function(...) {
  fields <- list(...)
  paste0("{", paste(sprintf("\"%s\": %s", names(fields), unlist(fields)), collapse = ",\n    "), "}")
}

# The highest specificity whose sensitivity reaches the target, and the mirror: no interpolation.
held <- function(curve, target) {
  points <- coords(curve, "all", ret = c("sensitivity", "specificity"), transpose = FALSE)
  c(max(points$specificity[points$sensitivity >= target]), max(points$sensitivity[points$specificity >= target]))
}

values <- function(label, first, second) {
  curves <- lapply(list(first, second), function(score) {
    roc(label, score, levels = c(0, 1), direction = "<", quiet = TRUE)
  })
  test <- roc.test(curves[[1]], curves[[2]], method = "delong", paired = TRUE)
  interval <- lapply(curves, function(curve) as.numeric(ci.auc(curve, method = "delong")))
  wide <- lapply(curves, function(curve) as.numeric(ci.auc(curve, method = "delong", conf.level = 0.99)))
  best <- lapply(curves, function(curve) {
    point <- coords(curve, "best", best.method = "youden", ret = c("sensitivity", "specificity"), transpose = FALSE)
    as.numeric(point[1, ])
  })
  object(
    n = number(length(label)),
    auc = vector(c(auc(curves[[1]]), auc(curves[[2]]))),
    variance = vector(c(var(curves[[1]], method = "delong"), var(curves[[2]], method = "delong"))),
    covariance = number(cov(curves[[1]], curves[[2]], method = "delong")),
    low = vector(c(interval[[1]][1], interval[[2]][1])),
    high = vector(c(interval[[1]][3], interval[[2]][3])),
    low_99 = vector(c(wide[[1]][1], wide[[2]][1])),
    high_99 = vector(c(wide[[1]][3], wide[[2]][3])),
    z = number(as.numeric(test$statistic)),
    p_value = number(test$p.value),
    difference_low = number(test$conf.int[1]),
    difference_high = number(test$conf.int[2]),
    specificity_at_sensitivity_95 = vector(c(held(curves[[1]], 0.95)[1], held(curves[[2]], 0.95)[1])),
    sensitivity_at_specificity_95 = vector(c(held(curves[[1]], 0.95)[2], held(curves[[2]], 0.95)[2])),
    youden_sum = vector(c(sum(best[[1]]), sum(best[[2]])))
  )
}

i <- 0:299
label <- as.numeric((7 * i * i + 3 * i) %% 10 < 4)
first <- (37 * i) %% 101 + 30 * label
second <- (53 * i + 11) %% 97 + 18 * label

folder <- "fusion_jax/data/sample_files"
image <- read.csv(gzfile(file.path(folder, "breast_mri_predictions_image_only.csv.gz")))
fused <- read.csv(gzfile(file.path(folder, "breast_mri_predictions_learned_feature_fusion.csv.gz")))
stopifnot(all(image$y_true == fused$y_true))

text <- object(
  software = sprintf("\"R %s, pROC %s\"", getRversion(), packageVersion("pROC")),
  ties = values(label, first, second),
  breast_mri = values(image$y_true, image$y_prob, fused$y_prob)
)
writeLines(text, "tests/evaluation/proc_values.json")
