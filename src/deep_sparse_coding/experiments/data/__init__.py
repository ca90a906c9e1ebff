"""The data of the experiments, read from files that the user has, and drawn stand-ins in the same layouts."""

from .camvid import CAMVID_CLASSES as CAMVID_CLASSES
from .camvid import CAMVID_IGNORE as CAMVID_IGNORE
from .camvid import MOVING_CLASSES as MOVING_CLASSES
from .camvid import read_camvid as read_camvid
from .cifar import CIFAR10_CLASSES as CIFAR10_CLASSES
from .cifar import content_digest as content_digest
from .cifar import read_cifar10 as read_cifar10
from .drawn import draw_camvid as draw_camvid
from .drawn import draw_cifar10 as draw_cifar10
from .drawn import draw_dut_omron as draw_dut_omron
from .dut_omron import SALIENT_CLASSES as SALIENT_CLASSES
from .dut_omron import read_dut_omron as read_dut_omron
from .images import LabelledImages as LabelledImages
from .images import SegmentedImages as SegmentedImages
from .images import hold_out as hold_out
