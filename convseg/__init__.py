"""ConvSeg: the segmentation model that DataEngine's exports train and measure. A photo and a prompt in, a mask out."""
