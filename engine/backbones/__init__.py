"""Frozen backbones: specification, loading, compilation and the gate.

Other packages import `compile`, `export`, `families.blocks`, `families.controls`, `families.given`,
`families.open_clip`, `families.packaged`, `families.preset`, `families.python_function`, `families.timm`, `family`,
`gate`, `lazy`, `packages`, `presets`, `registry`, `runtimes.base`, `runtimes.openvino`, `runtimes.openvino_builder`,
`runtimes.torch_compile`, `spec`, `weights`.
"""
