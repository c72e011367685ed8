"""Every model of the house: name -> (configuration, class)."""

from typing import Any

from torch import nn

from kunlun.models.dcnv2 import DCNv2, DCNv2Config
from kunlun.models.din import DIN, DINConfig
from kunlun.models.dlrm import DLRM, DLRMConfig
from kunlun.models.hstu import HSTU, HSTUConfig
from kunlun.models.interformer import InterFormer, InterFormerConfig
from kunlun.models.kunlun import Kunlun, KunlunConfig
from kunlun.models.onetrans import OneTrans, OneTransConfig
from kunlun.models.rankmixer import RankMixer, RankMixerConfig
from kunlun.models.transact import BST, BSTConfig, TransAct, TransActConfig
from kunlun.models.wukong import Wukong, WukongConfig

MODELS: dict[str, tuple[type[Any], type[nn.Module]]] = {
    "kunlun": (KunlunConfig, Kunlun),
    "dcnv2": (DCNv2Config, DCNv2),
    "dlrm": (DLRMConfig, DLRM),
    "wukong": (WukongConfig, Wukong),
    "din": (DINConfig, DIN),
    "interformer": (InterFormerConfig, InterFormer),
    "transact": (TransActConfig, TransAct),
    "bst": (BSTConfig, BST),
    "hstu": (HSTUConfig, HSTU),
    "rankmixer": (RankMixerConfig, RankMixer),
    "onetrans": (OneTransConfig, OneTrans),
}
