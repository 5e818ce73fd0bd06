"""Every state of the page, looked at by people as pictures and by machine as rules."""
