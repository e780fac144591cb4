package hook

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// CheckText says what is wrong with a text of people: its length in characters,
// or characters that do not show. Some control characters may be allowed.
func CheckText(s string, lowest, highest int, allowed string) string {
	n := utf8.RuneCountInString(s)
	switch {
	case !utf8.ValidString(s):
		return "is not UTF-8"
	case n < lowest || lowest > 0 && strings.TrimFunc(s, blank) == "":
		return "must not be empty"
	case n > highest:
		return fmt.Sprintf("must have at most %d characters, and has %d", highest, n)
	}
	for _, c := range s {
		if unshown(c) && !strings.ContainsRune(allowed, c) {
			return fmt.Sprintf("must not hold the control character U+%04X", c)
		}
	}
	return ""
}

// blank reports characters that leave no mark: a text of nothing else can't be
// seen, nor clicked on.
func blank(c rune) bool {
	return unicode.IsSpace(c) || unicode.Is(unicode.Cf, c) || unicode.Is(unicode.Other_Default_Ignorable_Code_Point, c)
}

// unshown reports characters that would change how a log line or a page reads:
// controls, and the bidirectional overrides that make a text look like another
// (Unicode UAX #9 §2.1 to §2.5).
func unshown(c rune) bool {
	return unicode.IsControl(c) || unicode.Is(unicode.Bidi_Control, c) || c == '\u2028' || c == '\u2029' || c == '\ufeff'
}
