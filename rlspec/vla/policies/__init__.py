"""LeRobot policies of types rlspec_adapter, rlspec_flow, rlspec_smolvla and rlspec_pi05; importing registers them."""

from rlspec.vla.policies.adapter.configuration_adapter import RlspecAdapterConfig
from rlspec.vla.policies.flow.configuration_flow import RlspecFlowConfig
from rlspec.vla.policies.pi05.configuration_pi05 import RlspecPI05Config
from rlspec.vla.policies.smolvla.configuration_smolvla import RlspecSmolVLAConfig

__all__ = ["RlspecAdapterConfig", "RlspecFlowConfig", "RlspecPI05Config", "RlspecSmolVLAConfig"]
