"""From a spec to where it runs: images, and jobs made of them."""
