"""VGG-19 (Simonyan & Zisserman 2014, arXiv:1409.1556), the network of Gatys et al."""

import functools

from nstvis.models import vgg16

TORCHVISION_FILE = "vgg19-dcbb9e9d.pth"
CAFFE_FILE = "vgg19-d01eb7cb.pth"
WIDTHS_AND_DEPTHS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
TORCHVISION_NAMES = vgg16.torchvision_names(WIDTHS_AND_DEPTHS)
CAFFE_NAMES = vgg16.CAFFE_NAMES

build = functools.partial(vgg16.build, blocks=WIDTHS_AND_DEPTHS)
