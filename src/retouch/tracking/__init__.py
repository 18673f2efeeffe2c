"""What follows pixels through a clip without a network: optical flow, marked objects, an edit's region."""
