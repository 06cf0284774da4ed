package output

import "strings"

// Nearest returns the one of words that somebody who wrote word most likely meant, or "": at most two letters differ, are
// missing or too many, or word begins it.
func Nearest(word string, words []string) string {
	best, least := "", 3
	for _, w := range words {
		d := distance(word, w)
		if d > 2 && len(word) >= 3 && strings.TrimLeft(word, "-") != "" && strings.HasPrefix(w, word) {
			d = 2
		}
		if d < least {
			best, least = w, d
		}
	}
	return best
}

// distance counts the letters to change, add or take away.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
