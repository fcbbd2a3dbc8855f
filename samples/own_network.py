"""Get instances from your own semantic network: pass its logits or class map to tfiseg.cluster.

`python samples/own_network.py photo.jpg` uses OpenCV's GrabCut instead of a network. It separates "object"
and "background" in the middle of the image. Replace it with your network's output (classes, h, w).
"""

import argparse
import sys

import cv2
import numpy as np
import tfiseg


def my_network(image: np.ndarray) -> np.ndarray:
    """Return logits float32 (2, h, w) at a quarter of the image's size, like a segmentation network."""
    height, width = image.shape[:2]
    labels = np.zeros((height, width), np.uint8)
    middle = (width // 8, height // 16, width * 3 // 4, height * 15 // 16)
    cv2.grabCut(image, labels, middle, np.zeros((1, 65)), np.zeros((1, 65)), 3, cv2.GC_INIT_WITH_RECT)
    probability = cv2.resize(
        (labels % 2).astype(np.float32), (width // 4, height // 4), interpolation=cv2.INTER_AREA
    )
    return np.stack([0.5 - probability, probability - 0.5]) * 8


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("photo")
parser.add_argument("out", nargs="?", help="write the overlay to this file")
args = parser.parse_args()
image = cv2.imread(args.photo)
if image is None:
    sys.exit(f"{args.photo} is not an image")
instances = tfiseg.cluster(
    my_network(image), class_names=["background", "object"], output_size_hw=image.shape[:2]
)
for i in instances:
    print(f"{i.class_name}: score {i.score:.2f}, {i.area} px, box {i.box_xyxy}")
if args.out and not cv2.imwrite(args.out, instances.draw(image)):
    sys.exit(f"{args.out} can't be written")
