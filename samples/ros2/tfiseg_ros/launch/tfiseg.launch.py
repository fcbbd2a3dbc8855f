"""Start the node for one camera: `ros2 launch tfiseg_ros tfiseg.launch.py image:=/camera/image_raw`."""

import os

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

PARAMETERS = os.path.join(get_package_share_directory("tfiseg_ros"), "config", "tfiseg.yaml")
TOPICS = {
    "image": "/camera/image_raw",
    "depth": "/camera/aligned_depth_to_color/image_raw",
    "camera_info": "/camera/camera_info",
}


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument("namespace", default_value="", description="namespace of the node"),
        DeclareLaunchArgument("parameters", default_value=PARAMETERS, description="YAML file of parameters"),
        *(
            DeclareLaunchArgument(name, default_value=topic, description=f"topic of the camera's {name}")
            for name, topic in TOPICS.items()
        ),
    ]
    node = Node(
        package="tfiseg_ros",
        executable="segmenter",
        name="tfiseg",
        namespace=LaunchConfiguration("namespace"),
        parameters=[LaunchConfiguration("parameters")],
        remappings=[
            *((name, LaunchConfiguration(name)) for name in TOPICS),
            ("image/compressed", [LaunchConfiguration("image"), "/compressed"]),
        ],
        output="screen",
        respawn=True,
        respawn_delay=1.0,
    )
    return LaunchDescription([*arguments, node])
