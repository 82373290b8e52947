"""Parameters and constants of ``isaacgym.gymapi`` (names, meanings and defaults: stubs)."""

import enum


class _Struct:
    """Attributes are fixed: a misspelt one is an error, as in the real C++ classes."""

    _defaults = {}

    def __init__(self):
        for name, value in self._defaults.items():
            object.__setattr__(self, name, value() if isinstance(value, type) else value)

    def __setattr__(self, name, value):
        if name not in self._defaults:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        object.__setattr__(self, name, value)


class Vec3:
    def __init__(self, x=0.0, y=0.0, z=0.0):
        self.x, self.y, self.z = float(x), float(y), float(z)


class Quat:
    def __init__(self, x=0.0, y=0.0, z=0.0, w=1.0):
        self.x, self.y, self.z, self.w = float(x), float(y), float(z), float(w)


class Transform(_Struct):
    _defaults = {"p": Vec3, "r": Quat}


class SimType(enum.Enum):
    SIM_PHYSX = 0
    SIM_FLEX = 1


class UpAxis(enum.Enum):
    UP_AXIS_Y = 0
    UP_AXIS_Z = 1


class ContactCollection(enum.Enum):
    CC_NEVER = 0
    CC_LAST_SUBSTEP = 1
    CC_ALL_SUBSTEPS = 2


class DofDriveMode(enum.IntEnum):
    DOF_MODE_NONE = 0
    DOF_MODE_POS = 1
    DOF_MODE_VEL = 2
    DOF_MODE_EFFORT = 3


class IndexDomain(enum.Enum):
    DOMAIN_ACTOR = 0
    DOMAIN_ENV = 1
    DOMAIN_SIM = 2


class KeyboardInput(enum.Enum):
    KEY_ESCAPE = 0
    KEY_V = 1


class TensorDataType(enum.IntEnum):
    DTYPE_FLOAT32 = 0
    DTYPE_UINT32 = 1
    DTYPE_UINT64 = 2
    DTYPE_UINT8 = 3
    DTYPE_INT16 = 4


class Tensor:
    """A descriptor: device, dtype, shape and address. ``owner``, ``layout`` and ``kept`` are the stand-in's own."""

    def __init__(self):
        self.device, self.dtype, self.shape, self.data_address, self.own_data = -1, None, [], 0, False
        self.owner = lambda: None  # a weak reference: a descriptor keeps nothing alive
        self.layout = ()
        self.kept = None  # the tensor itself, for memory that belongs to the simulator


class PhysXParams(_Struct):
    _defaults = {
        "use_gpu": False,
        "solver_type": 0,
        "num_threads": 0,
        "num_subscenes": 0,
        "num_position_iterations": 4,
        "num_velocity_iterations": 1,
        "contact_offset": 0.02,
        "rest_offset": 0.0,
        "bounce_threshold_velocity": 0.2,
        "max_depenetration_velocity": 100.0,
        "default_buffer_size_multiplier": 2.0,
        "max_gpu_contact_pairs": 1024 * 1024,
        "contact_collection": ContactCollection.CC_ALL_SUBSTEPS,
    }

    def __setattr__(self, name, value):
        # the real property takes the enumeration only (IsaacGymEnvs converts it in vec_task.py)
        if name == "contact_collection" and not isinstance(value, ContactCollection):
            raise TypeError("contact_collection must be a gymapi.ContactCollection")
        super().__setattr__(name, value)


class SimParams(_Struct):
    _defaults = {
        "dt": 1.0 / 60.0,
        "substeps": 2,
        "gravity": Vec3,
        "up_axis": UpAxis.UP_AXIS_Y,  # docs:simsetup: "Gym defaults to y-up for legacy reasons"
        "use_gpu_pipeline": False,
        "num_client_threads": 0,
        "physx": PhysXParams,
    }

    def __init__(self):
        super().__init__()
        self.gravity = Vec3(0.0, -9.8, 0.0)  # along the default up axis


class AssetOptions(_Struct):
    # density and damping: what the logged run on real Isaac Gym shows (tests/data/README.md)
    _defaults = {
        "fix_base_link": False,
        "density": 1000.0,
        "angular_damping": 0.5,
        "linear_damping": 0.0,
        "armature": 0.0,
        "disable_gravity": False,
        "override_com": False,
        "override_inertia": False,
    }


class PlaneParams(_Struct):
    _defaults = {"normal": Vec3, "distance": 0.0, "static_friction": 1.0, "dynamic_friction": 1.0, "restitution": 0.0}

    def __init__(self):
        super().__init__()
        self.normal = Vec3(0.0, 1.0, 0.0)


class CameraProperties(_Struct):
    _defaults = {"width": 1600, "height": 900, "use_collision_geometry": False}
