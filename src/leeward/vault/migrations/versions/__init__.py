"""Schema migrations, run when the service starts; a release adds one, none is ever edited."""
