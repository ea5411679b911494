"""Network code that we write ourselves, where no kept library carries it."""
