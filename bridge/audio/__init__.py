"""Pure: G.711 mu-law and resampling."""
