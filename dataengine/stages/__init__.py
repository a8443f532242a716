"""The stages of one image, a file each: plain functions over the three parts, every answer a durable step."""
