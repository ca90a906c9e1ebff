"""The networks of the experiments, by name, with any activation of the paper's class."""

from .activations import ACTIVATIONS as ACTIVATIONS
from .activations import activation_names as activation_names
from .build import MODELS as MODELS
from .build import build as build
from .resnet import ResNet as ResNet
from .unet import UNet as UNet
from .vgg import VGG as VGG
from .vit import ViT as ViT
