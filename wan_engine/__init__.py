"""A self-hosted replacement for the hosted WAN 2.6 image-to-video API.

from wan_engine import Engine, VideoRequest, data_uri
request = VideoRequest(prompt="Leaves sway gently", image=data_uri("photo.jpg"))
print(Engine().generate(request).video_url)

The names in `__all__` are public. A family in another package also uses `wan_engine.catalog`,
`wan_engine.families.base` and `wan_engine.schema`. All other modules are private and may
change in any release.
"""

from wan_engine.control import Control, Progress
from wan_engine.engine import Engine
from wan_engine.errors import EngineError
from wan_engine.media.fetch import data_uri
from wan_engine.schema import ContinuationRequest, ReferenceRequest, VideoRequest, VideoResult
from wan_engine.settings import VERSION as __version__
from wan_engine.settings import Settings

__all__ = [
    "ContinuationRequest",
    "Control",
    "Engine",
    "EngineError",
    "Progress",
    "ReferenceRequest",
    "Settings",
    "VideoRequest",
    "VideoResult",
    "__version__",
    "data_uri",
]
