"""Container images, and jobs on Docker, GKE and Vertex AI."""
