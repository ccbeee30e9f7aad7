"""How requests are moved: routes, selectors, numbers of replicas."""
