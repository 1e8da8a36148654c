"""3D CT and MRI reconstruction with a diffusion prior trained on ellipses and adapted to each scan.

`__init__.pyi` lists the public names. Each is imported on first use (PEP 562), so `import ddip_pl` is fast.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
