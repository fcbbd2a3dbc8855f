"""Draw the README's figure masks.jpg from public-domain photos: `python docs/images/masks.py`."""

from pathlib import Path

import cv2
import numpy as np
import tfiseg
from skimage import data

HEIGHT_PX = 330


def panel(picture: np.ndarray, title: str) -> np.ndarray:
    """Return an image of the figure's height with a title."""
    zoom = HEIGHT_PX / picture.shape[0]
    out = cv2.resize(picture, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)
    cv2.rectangle(out, (0, HEIGHT_PX - 24), (out.shape[1], HEIGHT_PX), (30, 30, 30), -1)
    cv2.putText(
        out, title, (8, HEIGHT_PX - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (240, 240, 240), 1, cv2.LINE_AA
    )
    return out


astronaut = np.ascontiguousarray(data.astronaut()[:, :, ::-1])
person = tfiseg.Segmenter(things="person")(astronaut).draw(astronaut)

coins = data.coins()[24:-8, 8:-8]
light = cv2.medianBlur(coins, 5).astype(int) - np.minimum(cv2.GaussianBlur(coins, (0, 0), 25), 110)
edges, _ = cv2.findContours(
    cv2.morphologyEx((light > 14).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((9, 9))),
    cv2.RETR_EXTERNAL,
    cv2.CHAIN_APPROX_NONE,
)
class_map = cv2.drawContours(np.zeros_like(coins), edges, -1, 1, -1)
class_map = cv2.morphologyEx(class_map, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9)))
class_map = cv2.dilate(class_map, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (13, 13)))
picture = cv2.cvtColor(coins, cv2.COLOR_GRAY2BGR)
flat = picture.copy()
flat[class_map > 0] = flat[class_map > 0] // 2 + np.array([110, 60, 20], np.uint8)
found = tfiseg.cluster(class_map, class_names=["background", "coin"], min_area=300)
blobs = cv2.connectedComponents(class_map)[0] - 1
panels = [
    panel(flat, f"any class map: {blobs} blobs"),
    panel(found.draw(picture), f"tfiseg.cluster: {len(found)} instances"),
    panel(person, "tfiseg.Segmenter"),
]
cv2.imwrite(str(Path(__file__).with_name("masks.jpg")), np.hstack(panels), [cv2.IMWRITE_JPEG_QUALITY, 88])
