# Interval of an AUC by the stratified bootstrap of pROC; run by benchmarks/bootstrap.py.
#
#     Rscript benchmarks/bootstrap_proc.R scores.csv 5000
#
# The file has columns `label` (0 or 1) and `score`. Prints the version of pROC, both ends of the 95 % interval, the
# processor time and the time on the clock of the bootstrap alone, in seconds.

suppressPackageStartupMessages(library(pROC))
arguments <- commandArgs(trailingOnly = TRUE)
table <- read.csv(arguments[1])
curve <- roc(table$label, table$score, levels = c(0, 1), direction = "<", quiet = TRUE)
set.seed(1)
spent <- system.time(
  interval <- ci.auc(
    curve, method = "bootstrap", boot.n = as.integer(arguments[2]), boot.stratified = TRUE, progress = "none"
  )
)
cat(
  as.character(packageVersion("pROC")),
  sprintf("%.8f", c(interval[1], interval[3], spent[["user.self"]] + spent[["sys.self"]], spent[["elapsed"]]))
)
