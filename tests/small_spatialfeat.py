"""The command `spatialfeat` with a small network and without drawing, for tests of what becomes of its processes."""

from drawing import draw_nothing
from networks import use_small_network

from spatialfeat.__main__ import main

if __name__ == "__main__":
    use_small_network()
    draw_nothing()
    main()
