"""What a study will take on a GPU, by the roofline: no photograph is read and no network is run."""
