"""Plain words and phrases, likeliest first."""

from __future__ import annotations

from minllm.data.tales.thing import words

COLOURS = words(
    """red, blue, green, yellow, white, purple, orange, brown, pink, silver, black, golden, grey, violet,
    scarlet, turquoise, cream, crimson, emerald, copper, lilac, ivory, amber, mint-green, coral, navy-blue,
    maroon, beige, rust-red, sky-blue, plum, pearl, indigo, tan, lemon-yellow, bronze, rose, magenta,
    chestnut-brown, charcoal, ruby, sapphire, apricot, mustard, khaki, teal, ice-blue, bottle-green,
    cherry-red, nut-brown, rosy, snow-white, jet-black, honey-coloured, straw-coloured, sea-green,
    salmon-pink, olive"""
)
LOOKS = words(
    """little, old, shiny, tiny, painted, striped, smooth, spotted, bright, lovely, handmade, funny, splendid,
    battered, simple, fine, glossy, peculiar, slender, heavy, curious, dainty, plain, sturdy, faded,
    magnificent, pretty, crooked, rare, polished, clumsy, sparkling, dusty, ordinary, famous, marvellous,
    strange, precious, neat, worn, cheap, twisted, broken, clean, lucky, elegant, square, delicate, checked,
    chipped, dotted, flat, gleaming, long, mended, modern, narrow, oval, patched, royal, scratched,
    second-hand, short, stiff, thick, thin, useful, wobbly"""
)
MIENS = words(
    """little, old, sleepy, clever, timid, fat, thin, noisy, hungry, proud, shaggy, wise, plump, nimble,
    young, grumpy, playful, nosy, fluffy, wild, tame, solemn, lazy, cross, dizzy, skinny, speckled, hairy,
    wet, muddy, bossy, jumpy, sneezing, snoring, dozing, travelling, wandering, curious, brave, shivering,
    limping, yawning, chubby, sly, smiling, silent, thirsty, lonely, homesick, gentle, elderly, freckled,
    handsome, stout, whistling, weary, bashful, nervous"""
)
WEATHERS = words(
    """sunny, windy, warm, misty, cloudy, cool, bright, frosty, grey, mild, chilly, breezy, golden, fresh,
    crisp, hazy, clear, blustery, gentle, dewy, sleepy, balmy, foggy, drizzly, hot, cold, damp, stormy, dull,
    muggy, glorious, still, changeable"""
)
GLAD = words(
    """happy, proud, glad, pleased, cheerful, delighted, joyful, merry, thankful, overjoyed, contented, jolly,
    light-hearted, thrilled, grateful, relieved, excited, satisfied, radiant, giddy, blissful, gleeful, calm,
    charmed, enchanted, high-spirited, hopeful, lively, peaceful, smiling, triumphant, untroubled"""
)
SAD = words(
    """sad, worried, upset, unhappy, miserable, gloomy, troubled, lonely, downhearted, sorry, tearful,
    anxious, wretched, heavy-hearted, glum, ashamed, puzzled, frightened, disappointed, nervous, desperate,
    uneasy, helpless, sorrowful, alarmed, guilty, sick with worry, unlucky, weepy, shaken"""
)
KIND_WAYS = words(
    """softly, kindly, gently, quietly, warmly, calmly, cheerfully, patiently, brightly, tenderly, politely,
    thoughtfully, gravely, sweetly, earnestly, firmly, shyly, wisely, slowly, seriously, hopefully, simply,
    nicely, dreamily, solemnly, frankly, mildly, with a smile, with a wink, with a nod, with a yawn, with a
    bow, after a pause, at once, with a grin, with a sigh, with a shrug, truthfully, fondly, modestly,
    graciously, dryly, plainly, trustingly, wistfully, merrily"""
)
QUICK_WAYS = words(
    """quickly, happily, carefully, bravely, slowly, eagerly, merrily, silently, boldly, gladly, steadily,
    lightly, nimbly, cautiously, busily, briskly, calmly, swiftly, secretly, neatly, cleverly, proudly,
    joyfully, promptly, skilfully, softly, hastily, gracefully, quietly, patiently, cheerfully, noiselessly,
    without a word, with great care, in a hurry, with a laugh, thoughtfully, stubbornly, smartly, daringly,
    deftly, dutifully, energetically, impatiently, keenly, willingly"""
)
NATURES = words(
    """kind, clever, quiet, brave, curious, cheerful, gentle, lively, thoughtful, friendly, patient, polite,
    dreamy, honest, careful, funny, stubborn, adventurous, helpful, shy, generous, sensible, hasty, chatty,
    tidy, bold, restless, loyal, fearless, calm, merry, absent-minded, serious, energetic, courteous, modest,
    imaginative, daring, bright-eyed"""
)
TREES = words(
    """oak, apple tree, willow, pine, chestnut, birch, maple, cherry tree, elm, hazel, walnut tree, larch,
    poplar, fig tree, sycamore, cedar, lime tree, plum tree, alder, hawthorn, spruce, beech, palm tree, pear
    tree, fir, juniper, acacia, mulberry, rowan, holly, magnolia, medlar, quince, cypress, olive tree, almond
    tree"""
)
FLOWERS = words(
    """daisies, roses, tulips, bluebells, buttercups, violets, poppies, primroses, marigolds, snowdrops,
    pansies, irises, cornflowers, foxgloves, dandelions, lavender, peonies, crocuses, hyacinths, asters,
    lilies, daffodils, sweet peas, orchids, thistles, cowslips, forget-me-nots, hollyhocks, wallflowers,
    jasmine"""
)
BIRDS = words(
    """blackbird, wren, swallow, cuckoo, thrush, lark, magpie, goldfinch, pigeon, starling, nightingale, jay,
    blue tit, skylark, linnet, finch, kingfisher, heron, parrot, peacock, seagull, stork, raven, dove,
    lapwing, plover, robin, hawk, woodpecker, nuthatch, turtle dove, moorhen, pheasant, quail, swift, wagtail,
    chaffinch, bullfinch, hoopoe, crane, sandpiper"""
)
INSECTS = words(
    """bee, beetle, ladybird, butterfly, cricket, dragonfly, grasshopper, snail, moth, caterpillar, bumblebee,
    ant, spider, earwig, hornet, firefly, glow-worm, woodlouse, cicada, wasp, gnat, mayfly, centipede,
    damselfly, weevil, worm, spotted moth, stag beetle, horsefly, slug"""
)
SMELLS = words(
    """fresh bread, cut grass, warm rain, wood smoke, honey, apples, the sea, cinnamon, pine needles, roasted
    nuts, wet earth, soap, mint, lemon, gingerbread, clean linen, onions, vanilla, pepper, wet wool, tar,
    peppermint, old books, coffee, sawdust, pears, hay, candle wax, chocolate, leather"""
)
TASTES = words(
    """warm, sweet, fresh, enormous, delicious, tasty, soft, cold, huge, juicy, crisp, sticky, wonderful,
    nice, excellent, tempting, large, small, squashed, superb, giant, well-earned, plump, perfect, fragrant,
    scrumptious, good, sugary"""
)
FOODS = words(
    """apple, pancake, biscuit, bun, pear, sandwich, plum cake, honey cake, jam tart, cheese pie, plum,
    cherry, potato, walnut, carrot, melon, muffin, egg, gingerbread man, waffle, fig, crust, custard tart,
    peach, omelette, banana, lemon drop, pretzel, dumpling, turnip, tomato, pudding, sausage, bagel, radish,
    apricot, doughnut, scone, pumpkin pie, chestnut, cookie, orange, cracker, strawberry, toffee, mango,
    meatball, raisin roll"""
)
TREASURES = words(
    """button, feather, pebble, marble, bell, pine cone, shell, tin soldier, key, coin, star, spoon, ribbon,
    jar, mirror, candle, bottle, compass, horseshoe, thimble, needle, brush, box, basket, cup, comb, ring,
    clock, bucket, map, book, whisk, nail, belt, bowl, chain, fan, fork, hammer, jug, kettle, lamp, locket,
    magnet, mug, necklace, paintbrush, pencil, pillow, pin, plate, purse, rug, saucer, stamp, teapot, tile,
    tray, vase, wheel, watch, wallet, blanket, bracelet, brooch, corkscrew, ladle"""
)
DAYS = words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
SEASONS = words("spring, summer, autumn, winter")
TOWNS = words(
    """Appleby, Millbrook, Greenhill, Oakford, Pebble Bay, Honeywell, Foxley, Larkfield, Willow End,
    Stonebridge, Merrydown, Thornbury, Sandy Cove, Elmstead, Hopton, Little Wick, Marlow, Upper Dean,
    Ferndale, Crabtree Lane, Winterbourne, Goosegreen, Quarry Bank, Maple Row, Dunmere, Whitcombe,
    Nettlefield, Port Amber, Ashwell, Harrow Lane, Kingsford, Moorgate, Bramble Hill, Old Ferry"""
)
HOUSES = words("cottage, house, farmhouse, flat, cabin, bungalow, houseboat, tower, caravan, lodge")
NOISES = words(
    """creak, rustle, thump, squeak, splash, whistle, rattle, tapping, hum, crunch, scratching, snort, jingle,
    murmur, groan, click, whimper, sigh, cough, patter, clatter, howl, whisper, sneeze, gurgle, bang, crackle,
    sob"""
)
CREATURES = words(
    """butterflies, ducklings, snails, bees, lambs, geese, kittens, ponies, frogs, beetles, swans, hens,
    rabbits, goats, pigeons, spiders, ladybirds, mules, calves, crabs, piglets, cranes, oxen, storks, mice,
    otters, donkeys, sparrows, puppies, turkeys, deer, moths, squirrels, toads, robins, cows, owls, foxes,
    hedgehogs, larks, chickens, wasps, worms, lizards, trout, seagulls, cats, hamsters, peacocks, tortoises,
    moles, camels, monkeys, badgers, parrots, seals"""
)
STONES = words("pebble, log, bucket, root, tree stump, rake, flowerpot, rope, puddle, brick, step, crate")
GAMES = words(
    """tag, hide-and-seek, marbles, leapfrog, pirates, hopscotch, skittles, dominoes, catch, explorers, kings
    and queens, cards, hoopla, charades, draughts, follow-my-leader, blind man's buff, jacks, rounders, snap"""
)
SONGS = words(
    """a sailor's song, a lullaby, a marching tune, a song about a goat, an old ballad, a silly rhyme, a
    carol, a waltz, a round"""
)
WENT = words(
    """ran, hurried, walked, skipped, marched, strolled, raced, trotted, wandered, tiptoed, hopped, rushed,
    crept, dashed, hiked, ambled, scampered, rambled, plodded, sped, bounded, galloped, jogged, stomped,
    danced, tramped, crawled, scurried, strode"""
)
SAID = words(
    """said, called, murmured, announced, declared, remarked, whispered, exclaimed, chuckled, laughed"""
)
ANSWERED = words(
    """answered, replied, said, sighed, mumbled, laughed, agreed, nodded, admitted, grinned, giggled"""
)
MOMENTS = words(
    """the next morning, at sunrise, early the next day, before breakfast, at first light, the day after, as
    soon as it was light, at seven o'clock, when the rooster crowed, when the bells rang, after a long night,
    a day later, on the third day, in the pale dawn, when the mist rose, after the milk came, one week later,
    that same week, when the moon set, with the first bus, as the cock sang, when nobody expected it"""
)
SOON = words(
    """soon, at last, before long, in the end, after a while, a little later, all at once, just then, a moment
    later, suddenly, in no time, presently, at that moment, some time later, not long after, without warning,
    right then, at the next corner"""
)
CORNERS = words(
    """under the bed, behind the piano, in the coal box, under the stairs, in the laundry basket, behind the
    curtains, on the top shelf, in the pantry, under the sofa, inside the big clock, in the bathtub, behind
    the stove, in the bread bin, under the carpet, in every drawer, behind the mirror, in the attic, beneath
    the cushions, on the windowsill, in the umbrella stand, in the oven, under the sink, behind the wardrobe,
    in the cradle, on the roof, in the woodshed, among the potatoes, in the toolbox, behind the radiator, in
    the chimney, under the doormat, in the dustbin"""
)
GARMENTS = words(
    """coat, hat, scarf, jacket, jumper, apron, cap, raincoat, dress, shirt, cloak, waistcoat, bonnet, shawl,
    beret, tunic, cardigan, bow tie, pair of boots, pair of gloves, pair of socks, pair of shorts, kilt,
    turban, poncho, sweater, uniform, helmet, hood, blouse, straw hat, top hat, nightshirt, overcoat, sash,
    bathing suit"""
)
SHAPES = words(
    """whale, ship, teapot, dragon, camel, giant, snail, castle, bear, mushroom, horse, feather, crocodile,
    elephant, boot, chair, swan, bell, lion, cauliflower, sleeping cat, face, wheel, fish, penguin, bridge,
    trumpet"""
)
NUMBERS = words(
    """three, two, four, five, ten, six, seven, eight, nine, twelve, twenty, a dozen, fifteen, a hundred,
    eleven, thirteen, fourteen, sixteen, thirty, forty, fifty, a thousand, a few, many, several"""
)
SIZES = words(
    """small, big, large, tall, huge, low, narrow, wide, crooked, round, hollow, sunlit, shady, quiet, leafy,
    grassy, dark, mossy, long, short, lonely, distant, nearby, ancient, silent, handsome, ugly, bare, noble,
    steep, gloomy, windswept, sturdy, slanting, splendid, stately, sleepy, old, sad-looking, pale, rustling,
    sheltered, lovely, plain, pretty, thin"""
)
VIRTUES = words(
    """kindness, patience, friendship, courage, honesty, sharing, hope, laughter, trust, helping, listening,
    hard work, giving, practice, love, a promise, asking, cheerfulness, a clear head, a warm heart"""
)
RICHES = words(
    """gold, silver, luck, speed, strength, cleverness, money, a crown, diamonds, magic, fame, a palace,
    winning, worry, tears, pearls, hurry, grumbling, a full purse, sulking, shouting, beauty"""
)
TOOLS = words(
    """brush, needle, hammer, spade, broom, ladder, rope, lamp, candle, spoon, fork, torch, map, stick, rake,
    net, bucket, trowel, sack, hook, saw, crowbar"""
)
RACED = words(
    """ran, raced, dashed, sped, galloped, hurried, rushed, charged, tore, flew, bolted, bounded, sprinted,
    hurtled, pelted, stormed"""
)
REVELLERS = words(
    """larks, kings, puppies, kittens, queens, lambs, sailors, ducks in the rain, bees in clover, clowns,
    dancers, princes, piglets, monkeys, swallows, pirates, mice in a cheese, otters, millionaires, bakers,
    circus bears, cats in the sun, drummers, crickets"""
)
FRIGHTS = words(
    """bear, dragon, giant, ghost, wolf, witch, monster, robber, pirate, troll, ogre, burglar, crocodile,
    tiger, lion, goblin, snake, phantom, bat, skeleton, wizard, hobgoblin, bandit, gorilla, sea serpent"""
)
ASKED = words("asked, wondered, whispered, murmured, called, said, cried, inquired, gasped")
CUTS = words(
    """cosy, warm, woolly, long, striped, checked, quilted, embroidered, soft, thick, smart, simple, short,
    elegant, loose, frilly, padded, reversible, comfortable, fashionable, waterproof, silky, splendid, tight,
    hooded"""
)
WRAPS = words(
    """scarf, ribbon, handkerchief, belt, shawl, sash, headscarf, neckerchief, bandanna, cravat, stocking"""
)
