"""FateZero (Qi et al., ICCV 2023): text edits by fusing the attention of the inversion into the edit."""
