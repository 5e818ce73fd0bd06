"""The DashScope door: `/api/v1/services/aigc/video-generation/video-synthesis`, `/api/v1/tasks`."""
