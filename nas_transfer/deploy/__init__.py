"""Networks for other programs: exported files, engines that run them, model cards."""
