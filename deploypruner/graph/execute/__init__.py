"""Running a traced graph: as a module, in float64, with gates, with other parameters, on other devices."""
