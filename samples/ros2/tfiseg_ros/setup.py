"""ament_python package: `colcon build --packages-select tfiseg_ros`, or `pip install` without a workspace."""

from setuptools import setup

NAME = "tfiseg_ros"

setup(
    name=NAME,
    version="0.1.0",
    description="Instance masks of camera images in real time, by tfiseg.",
    license="Apache-2.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", ["launch/tfiseg.launch.py"]),
        (f"share/{NAME}/config", ["config/tfiseg.yaml"]),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    entry_points={"console_scripts": [f"segmenter = {NAME}.node:main"]},
)
