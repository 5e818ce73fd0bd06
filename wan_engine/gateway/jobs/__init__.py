"""Jobs from the moment they are accepted to the moment they are forgotten."""
