"""Run by .venv-peers: what torchvision's detectors make of random outputs, as safetensors.

torchvision's wheels need the CUDA build of PyTorch for their compiled kernels. Its Python code does not: it is loaded
without them, and suppression, the one kernel it then lacks, is written out below.
"""

import sys
import types
from importlib import import_module
from pathlib import Path

from safetensors.numpy import save_file

torch = import_module("torch")
sys.path.insert(0, str(Path(sys.prefix) / "torchvision"))
sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
SCHEMA = torch.library.Library("torchvision", "DEF")
SCHEMA.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

boxes_module = import_module("torchvision.ops.boxes")
_utils, anchor_utils, image_list, retinanet, roi_heads, rpn = (
    import_module(f"torchvision.models.detection.{name}")
    for name in ("_utils", "anchor_utils", "image_list", "retinanet", "roi_heads", "rpn")
)
AnchorGenerator, ImageList = anchor_utils.AnchorGenerator, image_list.ImageList
# The module: torchvision.ops gives the function of its name.
_roi_align = sys.modules["torchvision.ops.roi_align"]._roi_align

IMAGE, IMAGES, CLASSES = (192, 256), 2, 3
MAPS = ((12, 16), (6, 8))
SIZES, RATIOS = ((24, 40), (64, 96)), (0.5, 1.0, 2.0)
CELL = len(SIZES[0]) * len(RATIOS)


def nms(boxes, scores, threshold):
    """Greedy suppression."""
    kept = []
    overlaps = boxes_module.box_iou(boxes, boxes)
    for row in torch.argsort(scores, descending=True, stable=True).tolist():
        if all(overlaps[row, other] <= threshold for other in kept):
            kept.append(row)
    return torch.tensor(kept, dtype=torch.int64)


boxes_module.nms = nms


class Preset(torch.nn.Module):
    """A head whose outputs are given."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, features):
        return self.outputs


def random_boxes(generator, count):
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([IMAGE[1], IMAGE[0]]) * 0.7
    return torch.cat([corner, corner + 8 + 90 * torch.rand(count, 2, generator=generator)], dim=1)


def main(out):
    g = torch.Generator().manual_seed(0)
    images = ImageList(torch.zeros(IMAGES, 3, *IMAGE), [IMAGE] * IMAGES)
    features = {str(level): torch.zeros(IMAGES, 4, *size) for level, size in enumerate(MAPS)}
    generator = AnchorGenerator(SIZES, (RATIOS,) * 2)
    anchors = generator(images, list(features.values()))[0]
    truth = [random_boxes(g, 3), random_boxes(g, 2)]
    labels = [torch.tensor([1, 3, 2]), torch.tensor([3, 1])]
    targets = [{"boxes": box, "labels": label} for box, label in zip(truth, labels, strict=True)]
    result = {"anchors": anchors}

    # First stage; so many samples that none are drawn.
    objectness = [torch.randn(IMAGES, CELL, *size, generator=g) for size in MAPS]
    deltas = [0.3 * torch.randn(IMAGES, 4 * CELL, *size, generator=g) for size in MAPS]
    first = rpn.RegionProposalNetwork(
        generator, Preset((objectness, deltas)), 0.7, 0.3, 10**6, 1.0,
        {"training": 200, "testing": 150}, {"training": 120, "testing": 60}, 0.3,
    )  # fmt: skip
    first.train()
    proposals, losses = first(images, features, targets)
    flat_objectness, flat_deltas = rpn.concat_box_prediction_layers(list(objectness), list(deltas))
    result |= {
        "objectness": flat_objectness.reshape(IMAGES, -1),
        "deltas": flat_deltas.reshape(IMAGES, -1, 4),
        "objectness_loss": losses["loss_objectness"],
        "proposal_boxes_loss": losses["loss_rpn_box_reg"],
    }
    result |= {f"proposals_{image}": boxes for image, boxes in enumerate(proposals)}
    first.eval()
    result |= {f"inferred_{image}": boxes for image, boxes in enumerate(first(images, features)[0])}
    matcher = _utils.Matcher(0.7, 0.3, allow_low_quality_matches=True)
    for image, box in enumerate(truth):
        result |= {f"truth_{image}": box, f"labels_{image}": labels[image] - 1}
        result[f"matched_{image}"] = matcher(boxes_module.box_iou(box, anchors))

    # Second stage.
    second = roi_heads.RoIHeads(None, None, None, 0.5, 0.5, 10**6, 1.0, None, 0.05, 0.2, 10)
    chosen, _, chosen_labels, regression = second.select_training_samples(list(proposals), targets)
    count = [len(boxes) for boxes in chosen]
    class_logits = 2 * torch.randn(sum(count), CLASSES + 1, generator=g)
    box_deltas = torch.randn(sum(count), 4 * (CLASSES + 1), generator=g)
    class_loss, box_loss = roi_heads.fastrcnn_loss(class_logits, box_deltas, chosen_labels, regression)
    found = second.postprocess_detections(class_logits, box_deltas, chosen, [IMAGE] * IMAGES)
    result |= {
        "class_logits": class_logits,
        "box_deltas": box_deltas,
        "classes_loss": class_loss,
        "boxes_loss": box_loss,
    }
    for image in range(IMAGES):
        result |= {f"chosen_{image}": chosen[image], f"chosen_labels_{image}": chosen_labels[image]}
        for name, part in zip(("boxes", "scores", "labels"), found, strict=True):
            result[f"found_{name}_{image}"] = part[image]

    # One stage.
    matcher = _utils.Matcher(0.5, 0.4, allow_low_quality_matches=True)
    matched = [matcher(boxes_module.box_iou(box, anchors)) for box in truth]
    logits = 2 * torch.randn(IMAGES, len(anchors), CLASSES, generator=g) - 2
    outputs = {"cls_logits": logits, "bbox_regression": result["deltas"]}
    zero_based = [{"boxes": box, "labels": label - 1} for box, label in zip(truth, labels, strict=True)]
    head = retinanet.RetinaNetHead(4, CELL, CLASSES)
    losses = head.compute_loss(zero_based, outputs, [anchors] * IMAGES, matched)
    result |= {"logits": logits, "focal_loss": losses["classification"], "l1_loss": losses["bbox_regression"]}
    head.regression_head._loss_type = "giou"
    result["giou_loss"] = head.regression_head.compute_loss(zero_based, outputs, [anchors] * IMAGES, matched)
    model = types.SimpleNamespace(
        score_thresh=0.05, topk_candidates=300, nms_thresh=0.5, detections_per_img=20,
        box_coder=_utils.BoxCoder((1.0, 1.0, 1.0, 1.0)),
    )  # fmt: skip
    of_level = [height * width * CELL for height, width in MAPS]
    found = retinanet.RetinaNet.postprocess_detections(
        model,
        {name: list(value.split(of_level, dim=1)) for name, value in outputs.items()},
        [list(anchors.split(of_level))] * IMAGES,
        [IMAGE] * IMAGES,
    )
    for image, detections in enumerate(found):
        result |= {f"one_stage_{name}_{image}": part for name, part in detections.items()}

    # RoIAlign, as torchvision writes it out in Python.
    maps = torch.randn(IMAGES, 5, *MAPS[0], generator=g)
    rois = torch.cat([torch.full((20, 1), 1.0), chosen[1][:20]], dim=1)
    result |= {"maps": maps, "rois": rois[:, 1:]}
    result["aligned"] = _roi_align(maps, rois, 1 / 16, 7, 7, 2, False)
    save_file({name: part.detach().numpy().copy() for name, part in result.items()}, out)


if __name__ == "__main__":
    main(sys.argv[1])
