//go:build !linux

package registry

import (
	"errors"
	"os"
)

// flock is for Linux only.
func flock(*os.File) (string, error) { return "", errors.ErrUnsupported }
