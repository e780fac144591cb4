//go:build !unix

package adminsocket

import "errors"

func ownerOf(string) (int, error) { return 0, errors.ErrUnsupported }
