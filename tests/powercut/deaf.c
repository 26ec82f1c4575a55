/* Calls that wait for the disk, and do not: what a program would be that does not ask for durability at all. */
int syncfs(int descriptor) { return 0 * descriptor; }
int fsync(int descriptor) { return 0 * descriptor; }
int fdatasync(int descriptor) { return 0 * descriptor; }
