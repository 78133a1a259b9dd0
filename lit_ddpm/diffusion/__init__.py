"""The mathematics: schedules, Gaussians, the denoiser, objectives, samplers and the bound. It needs torch alone."""
