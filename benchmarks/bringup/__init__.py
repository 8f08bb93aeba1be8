"""The first fifteen minutes on a machine with a GPU: steps that need only numpy and the driver's bindings."""
