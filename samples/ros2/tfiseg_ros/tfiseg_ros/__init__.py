"""ROS 2 node around tfiseg: images in, instance masks out."""
