"""Doctor, on machines that are here and machines that are not."""
