"""Loads a URDF far enough to know that it is a cartpole whose physics the stand-in has: of other masses and limits, maybe."""

import xml.etree.ElementTree as ElementTree

PUBLIC = {  # IsaacGymEnvs assets/urdf/cartpole.urdf and cfg/task/Cartpole.yaml
    "boxes": {"slider": (0.03, 8.0, 0.03), "cart": (0.2, 0.25, 0.2)},
    "pole_section": (0.04, 0.06),
    "axes": {"slider_to_cart": (0.0, 1.0, 0.0), "cart_to_pole": (1.0, 0.0, 0.0)},
    "hinge": (0.12, 0.0, 0.0),
}


class UnknownAsset(NotImplementedError):
    """The stand-in has the physics of one machine only."""


def _vector(text):
    return tuple(float(number) for number in text.split())


class Asset:
    def __init__(self, path, options, sim_params):
        robot = ElementTree.parse(path).getroot()
        links = {link.get("name"): link for link in robot.findall("link")}
        joints = {joint.get("name"): joint for joint in robot.findall("joint")}
        boxes = {name: _vector(link.find("collision/geometry/box").get("size")) for name, link in links.items()}
        pole = boxes.pop("pole")
        found = {
            "boxes": boxes,
            "pole_section": pole[:2],
            "axes": {name: _vector(joint.find("axis").get("xyz")) for name, joint in joints.items()},
            "hinge": _vector(joints["cart_to_pole"].find("origin").get("xyz")),
        }
        for name, value in PUBLIC.items():
            if found[name] != value:
                raise UnknownAsset(f"{name}: the public cartpole has {value}, this asset {found[name]}")
        origins = {_vector(links["pole"].find(f"{part}/origin").get("xyz")) for part in ("visual", "collision", "inertial")}
        if origins != {(0.0, 0.0, 0.47 * pole[2])}:
            raise UnknownAsset(f"the pole's centre is 0.47 of its length above the joint, this asset has {origins}")
        inertia = links["pole"].find("inertial/inertia")
        self.dofs = [self._dof(joints[name]) for name in ("slider_to_cart", "cart_to_pole")]
        low, high = self.dofs[0][1:3]
        if low != -high or sim_params.gravity.x or sim_params.gravity.y:
            raise UnknownAsset("the public cartpole is symmetric, and its gravity has no horizontal part")
        self.machine = {
            "cart_mass": float(links["cart"].find("inertial/mass").get("value")),
            "pole_mass": float(links["pole"].find("inertial/mass").get("value")),
            "pole_length": pole[2],
            "pole_inertia": None if inertia is None else float(inertia.get("ixx")),
            "gravity": -sim_params.gravity.z,
            "angular_damping": options.angular_damping,
            "max_cart_speed": self.dofs[0][4],
            "max_pole_speed": self.dofs[1][4],
            "track_limit": high,
        }
        self._check_options(options, sim_params)

    @staticmethod
    def _check_options(options, params):
        expected = [
            (options.fix_base_link, True, "fix_base_link"),
            (options.density, 1000.0, "density"),
            (options.armature, 0.0, "armature"),
            (params.physx.solver_type, 1, "solver_type (1: TGS)"),
            (params.physx.num_position_iterations, 4, "num_position_iterations"),
            (params.physx.num_velocity_iterations, 0, "num_velocity_iterations"),
        ]
        for value, public, name in expected:
            if value != public:
                raise UnknownAsset(f"{name}: the public cartpole has {public}, this one {value}")

    @staticmethod
    def _dof(joint):
        """(hasLimits, lower, upper, driveMode, velocity, effort, stiffness, damping, friction, armature)"""
        limit = joint.find("limit")
        bounded = limit.get("lower") is not None
        low, high = (float(limit.get(end, "0")) for end in ("lower", "upper"))
        # docs:physics: drive mode NONE unless the asset or the options say otherwise
        return bounded, low, high, 0, float(limit.get("velocity")), float(limit.get("effort")), 0.0, 0.0, 0.0, 0.0
