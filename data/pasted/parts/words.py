"""Words that signs show. None of them is the name of a thing."""

from data.pasted.parts.names import listed

WORDS = sorted(
    listed(
        """able, acid, away, back, band, bank, base, beach, best, bite, blue, body, bold, born, busy, cafe, calm,
        chef, city, clean, club, cold, cool, cost, dance, dark, date, deal, deep, dirt, done, down, draw, dream,
        east, easy, exit, fair, farm, fast, film, fine, five, folk, four, free, fresh, full, game, gold, good, gray,
        green, half, hall, help, high, hill, hope, hour, idea, iron, join, jump, kind, king, lake, last, left, life,
        line, live, long, loud, love, luck, main, maple, media, menu, mild, mint, more, moth, music, name, navy,
        near, news, next, nine, noon, north, note, open, over, paid, park, part, past, path, peace, pink, play,
        plus, pool, port, post, pure, push, quick, quiet, race, rain, real, rest, rice, rich, road, roof, room,
        rule, safe, sale, sand, save, show, side, silk, size, slow, snow, soft, song, soon, south, spot, stay, step,
        stop, store, sugar, swim, tall, taste, team, ten, test, time, today, tour, town, true, turn, up, very, view,
        visit, wait, walk, warm, wash, wave, week, west, white, wide, wild, wind, wish, work, world, year, yes,
        zone"""
    )
)
