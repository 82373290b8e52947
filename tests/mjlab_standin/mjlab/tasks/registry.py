from copy import deepcopy

TASKS = {}


def list_tasks():
    return sorted(TASKS)


def load_env_cfg(task_name):
    return deepcopy(TASKS[task_name])
