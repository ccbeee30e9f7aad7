"""Engines that a cluster has already, Argo Rollouts and KServe: what they are told, and what they say."""
