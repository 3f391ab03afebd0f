package config

import (
	"fmt"
	"io"
	"os"
	"reflect"
	"unicode/utf8"
)

// Load reads the file at path, applies Defaults to what it leaves out, and checks
// everything, the named secret files included. A configuration that is wrong
// gives Problems, all of them at once; a file that cannot be read the os error.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	defer f.Close()
	src, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	cfg, d := parse(path, src)
	if cfg != nil {
		d.checkFiles(cfg)
	}
	if len(d.problems) > 0 {
		return nil, d.problems.sorted()
	}
	if cfg.Name == "" {
		cfg.Name = defaultName(cfg)
	}
	return cfg, nil
}

// Parse reads src as Load does, but touches no other file and leaves an unset Name
// empty. file is what errors call the source; relative paths start at its folder.
func Parse(file string, src []byte) (*Config, error) {
	cfg, d := parse(file, src)
	if len(d.problems) > 0 {
		return nil, d.problems.sorted()
	}
	return cfg, nil
}

func parse(file string, src []byte) (*Config, *decoder) {
	d := newDecoder(file, src)
	switch {
	case len(src) > maxFileSize:
		d.add(position{}, "", fmt.Sprintf("the file is larger than %d bytes: this is no configuration", maxFileSize))
		return nil, d
	case !utf8.Valid(src):
		d.add(position{}, "", "the file is no UTF-8 text")
		return nil, d
	}
	cfg := Defaults()
	root := d.document(src)
	if root != nil {
		d.section(root, reflect.ValueOf(cfg).Elem(), "")
	} else if len(d.problems) > 0 {
		return nil, d
	}
	cfg.normalize()
	d.validate(cfg)
	return cfg, d
}

func defaultName(cfg *Config) string {
	if cfg.Node != nil {
		return string(cfg.Node.ID)
	}
	if host, err := os.Hostname(); err == nil && host != "" && validName(host) {
		return host
	}
	return "observer"
}
