package controlplane

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"sync"
)

// maxLogBytes bounds one log file; one older file of the same size is kept beside it.
const maxLogBytes = 32 << 20

// logFile is a log that is moved aside to path.1 when it has grown to its limit.
type logFile struct {
	path  string
	limit int64

	mu   sync.Mutex
	file *os.File // guarded by mu
	size int64    // guarded by mu
}

func newLogFile(path string, limit int64) (*logFile, error) {
	l := &logFile{path: path, limit: limit}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

// open opens the file at its end. The caller holds mu, or is the only user.
func (l *logFile) open() error {
	f, err := os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("open log: %w", err)
	}
	l.file, l.size = f, info.Size()
	return nil
}

// Write appends b. Writing to the log never fails the program that is logged: an error loses the text, not the program.
func (l *logFile) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return len(b), nil
	}
	if l.size > 0 && l.size+int64(len(b)) > l.limit {
		l.file.Close()
		l.file = nil
		if err := os.Rename(l.path, l.path+".1"); err != nil {
			return len(b), nil
		}
		if err := l.open(); err != nil {
			return len(b), nil
		}
	}
	n, _ := l.file.Write(b)
	l.size += int64(n)
	return len(b), nil
}

// Close closes the file.
func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}

// ResidentBytes returns the resident set size of a process, or 0 when it cannot be read.
func ResidentBytes(pid int) int64 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
	if err != nil {
		return 0
	}
	fields := bytes.Fields(b)
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseInt(string(fields[1]), 10, 64)
	if err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}
