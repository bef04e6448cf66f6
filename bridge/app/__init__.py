"""Settings, routes, start-up and the services that all calls share."""
