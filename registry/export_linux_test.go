package registry

// LockID gives tests the name of a lock.
var LockID = lockID
