//go:build !unix

package fsconf

import (
	"io/fs"
	"os"
)

// Elsewhere files have no owner that FreeSWITCH would look at.
func chown(*os.File, fs.FileInfo) error { return nil }
