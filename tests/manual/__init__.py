"""The manual's commands, run as they stand there, and what they print held against what is shown.

A page's fenced blocks of the language `sh` are commands; those of `console` are commands after a
`$ `, each with what it has printed below it; those of `sql` are statements. Comments, which no
reader sees, say what else a page needs:

    <!-- manual: daemon embedded -->     a daemon that consumes is there from here on (or rabbitmq)
    <!-- manual: as SHOP_URL -->         who executes the next SQL: a variable with the URL
    <!-- manual: first                   what is run here and not shown
    tenantry tenant create Acme --id acme
    -->
    <!-- manual: ends with 1 -->         how each command of the next block ends
    <!-- manual: not run: machines -->   the next block is not run, for one of the reasons in `WHY`

`python -m tests.manual docs/limits.md` runs a page, and with `--write` puts what was printed into
it.
"""
