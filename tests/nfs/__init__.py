"""The migrator on real NFS: a virtual machine with a file server and two clients, each with a worker."""
