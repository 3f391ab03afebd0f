package pbxmesh

import "errors"

// Sentinel errors that cross package boundaries. Compare with errors.Is.
var (
	// ErrInvalidAOR reports a user or domain that is not a valid address of
	// record. The wrapped text names the offending part, never the whole input
	// when that is long.
	ErrInvalidAOR = errors.New("invalid address of record")

	// ErrInvalidNodeID reports a node name that cannot be a DNS label and a
	// registry key.
	ErrInvalidNodeID = errors.New("invalid node name")

	// ErrInvalidRecord reports a registration, node or lease whose fields are
	// out of bounds: it came from a stranger or from another version.
	ErrInvalidRecord = errors.New("invalid record")

	// ErrNotRegistered says that the registry was read and holds no live
	// registration. It never stands for "the registry could not be read".
	ErrNotRegistered = errors.New("not registered")

	// ErrUnavailable says that a store or a switch could not be asked. Nothing
	// is known about what it holds.
	ErrUnavailable = errors.New("unavailable")
)
